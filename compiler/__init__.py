"""Compile two manifests into one TransferPlan, one pass a module; verify and compare plans."""
