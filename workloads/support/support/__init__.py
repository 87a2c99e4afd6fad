"""Support desk: answers employees' questions from the agency's handbook."""
