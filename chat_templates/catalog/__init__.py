"""Templates of common families, written for Unigate: files beside `index`, which says what each of them is."""
