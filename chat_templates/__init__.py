"""Chat templates: parsing, rendering and tokenising; import, export and proof next. Pure: no process, no server."""
