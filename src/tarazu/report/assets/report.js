// What the page can do with scripts: sort tables, filter answers, the file of a figure at a tap, a direction that follows the language.
(function () {
  const root = document.documentElement, fa = document.getElementById("show-fa"), en = document.getElementById("show-en");
  const follow = () => { root.lang = fa.checked ? "fa" : "en"; root.dir = fa.checked ? "rtl" : "ltr"; };
  for (const input of [fa, en]) input.addEventListener("change", follow);

  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);  // what was not measured stays last
    const x = Number(a), y = Number(b);
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
        const value = (row) => row.cells[column].getAttribute("data-sort");
        const known = (row) => value(row) !== null;
        const rows = [...table.tBodies[0].rows].sort((a, b) => (known(a) && known(b) ? down : 1) * compare(value(a), value(b)));
        table.tBodies[0].append(...rows);
      });
    });
  }

  for (const group of document.querySelectorAll(".filters")) {
    group.hidden = false;
    const samples = group.parentElement.querySelectorAll(".samples > .sample"), buttons = [...group.querySelectorAll("button")];
    for (const button of buttons) button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      for (const sample of samples) sample.hidden = button.dataset.filter !== "" && sample.dataset.ability !== button.dataset.filter;
    });
  }

  const from = document.createElement("a");  // the file of a figure, where it was tapped: a screen without a pointer shows no title
  from.className = "from";
  from.dir = "ltr";
  from.hidden = true;
  document.getElementById("main").append(from);
  document.addEventListener("click", (event) => {
    const figure = event.target.closest(".n[title]");
    if (event.target === from) return;
    from.hidden = !figure || event.target.closest("a, button, summary, label") !== null;
    if (from.hidden) return;
    const box = figure.getBoundingClientRect();
    from.textContent = figure.title;
    from.href = "./" + figure.title.split("/").map(encodeURIComponent).join("/");
    from.style.top = box.bottom + scrollY + 2 + "px";
    from.style.left = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - from.offsetWidth - 8)) + scrollX + "px";
  });

  addEventListener("beforeprint", () => { for (const details of document.querySelectorAll("main .explain, main .fold:not(.long)")) details.open = true; });
})();
