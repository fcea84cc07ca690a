"""isostep beside the real frameworks, each of which runs in a process of its own."""
