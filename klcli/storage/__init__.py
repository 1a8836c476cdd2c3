"""What klcli keeps on a disk: files, manifests, tensors and tables. It knows nothing of models."""
