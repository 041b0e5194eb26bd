"""How things look: HTML, charts, tables, numbers and text in two languages."""
