"""The PyTorch front-end against torch.optim itself."""
