"""The nouns: plain frozen records that every room shares. No I/O, no logic beyond self-checks."""
