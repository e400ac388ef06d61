"""vmtokenctl: the operator's command line in dom0."""
