"""Prompts: made shorter where asked, and watched for what keeps the provider's own cache from working."""
