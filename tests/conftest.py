"""Settings of every test."""

import torch

# The tests' products are small: a second thread gains nothing, and costs tenfold where another
# process wants the same core.
torch.set_num_threads(1)
