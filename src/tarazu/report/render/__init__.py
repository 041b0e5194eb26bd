"""How the report looks: HTML, charts, tables, numbers and bilingual text."""
