"""Chat templates: parsing now; rendering, import, export and proof next. Pure: no process, no server."""
