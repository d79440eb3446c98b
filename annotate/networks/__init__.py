"""Pi3X and MoGe-2 in plain torch, with the parameter names of their released checkpoints.

Inference only. Every network is a function of its state dict: nothing here downloads (`dataset.weights` does) and
nothing here knows about clips (`annotate.geometry` does).
"""
