"""What tests of dictionaries share."""

import torch


def perturbed(dictionary, noise=torch.randn_like):
    """Changes a dictionary, and returns it, so that no tensor is at its initial value and rows have unequal norms."""
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.add_(0.3 * noise(parameter))
        for buffer in dictionary.buffers():
            buffer.fill_(0.7)
    return dictionary
