"""The stages as Triton kernels, for every GPU and both branches."""
