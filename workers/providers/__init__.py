"""One kind of provider a file, and the contract that all of them keep."""
