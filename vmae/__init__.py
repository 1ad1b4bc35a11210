"""vmae: a workbench for video masked autoencoders.

The code lives in five folders beside this one (`core`, `kernels`, `experiments`, `cli`,
`dashboard`); the links in this folder give them one import name, `vmae.core` and so on.
"""

__version__ = "0.1.0"
