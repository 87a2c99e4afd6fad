"""The life of a gateway: start, serving, reload, drain, end."""
