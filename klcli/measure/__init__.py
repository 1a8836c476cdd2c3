"""How two predictions differ, token by token."""
