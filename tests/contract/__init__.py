"""What a gateway promises, asked of a real one."""
