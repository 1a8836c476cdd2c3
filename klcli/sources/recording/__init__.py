"""klcli's own recordings of what a model predicted."""
