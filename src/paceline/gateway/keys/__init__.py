"""Gateway keys: who may call, what they may spend, and the file they are kept in."""
