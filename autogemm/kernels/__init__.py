"""Raw Triton kernels. Nothing here is imported before a strategy that needs it is bound."""
