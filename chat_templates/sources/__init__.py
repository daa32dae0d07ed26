"""Where templates come from: one module for each kind of file, each giving what it found."""
