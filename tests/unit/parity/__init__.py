"""What the parity table decides, with engines that are told what to show."""
