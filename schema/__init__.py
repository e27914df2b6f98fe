"""What is declared: manifests, encodings, pieces, policies, plans and diagnostics."""
