"""One file per section of the report: each turns the study into what its template shows."""
