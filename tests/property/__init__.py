"""What is always true."""
