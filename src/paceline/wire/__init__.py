"""HTTP/1.1 on both sides, server-sent events, and the dialect of OpenAI's API."""
