// What the page does with scripts: sort tables, filter answers, show the source of a tapped number,
// and let the direction follow the language.
(function () {
  const root = document.documentElement, main = document.getElementById("main");
  const persian = document.getElementById("show-fa"), english = document.getElementById("show-en");
  const setLanguage = () => {
    root.lang = persian.checked ? "fa" : "en";
    root.dir = persian.checked ? "rtl" : "ltr";
  };
  for (const input of [persian, english]) input.addEventListener("change", setLanguage);

  // Numbers by size, texts by alphabet; a missing value comes last in both directions.
  const compare = (a, b, sign) => {
    if (a === null || b === null) return (a === null) - (b === null);
    const x = Number(a), y = Number(b);
    return sign * (Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y);
  };

  function sortTable(table, head, column) {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
    const value = (row) => row.cells[column].getAttribute("data-sort");
    const rows = [...table.tBodies[0].rows];
    table.tBodies[0].append(...rows.sort((a, b) => compare(value(a), value(b), sign)));
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sortTable(table, head, column));
      head.append(button);
    });
  }

  for (const group of document.querySelectorAll(".filters")) {
    group.hidden = false;
    const samples = group.parentElement.querySelectorAll(".samples > .sample");
    const buttons = [...group.querySelectorAll("button")];
    for (const button of buttons) button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      const ability = button.dataset.filter;  // empty: all
      for (const sample of samples) {
        sample.hidden = ability !== "" && sample.dataset.ability !== ability;
      }
    });
  }

  // The source of a number below it where it was tapped: a touch screen shows no title.
  const source = document.createElement("a");
  source.className = "from";
  source.dir = "ltr";
  source.hidden = true;
  main.append(source);
  document.addEventListener("click", (event) => {
    if (event.target === source) return;
    const number = event.target.closest(".n[title]");
    source.hidden = !number || event.target.closest("a, button, summary, label") !== null;
    if (source.hidden) return;
    const box = number.getBoundingClientRect();
    source.textContent = number.title;
    source.href = "./" + number.title.split("/").map(encodeURIComponent).join("/");
    const rightmost = root.clientWidth - source.offsetWidth - 8;
    source.style.top = box.bottom + scrollY + 2 + "px";
    source.style.left = Math.max(8, Math.min(box.left, rightmost)) + scrollX + "px";
  });

  addEventListener("beforeprint", () => {
    const folded = document.querySelectorAll("main .explain, main .fold:not(.long)");
    for (const details of folded) details.open = true;
  });
})();
