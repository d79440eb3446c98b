"""Steps of the networks in one pass over memory each: plain torch, and Triton kernels where there is a GPU."""
