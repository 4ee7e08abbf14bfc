"""Reads the rows of data sets and makes batches of them, for training and evaluation.

From a file to a batch: `row_offsets` locates the rows of a file, `rows` reads one, `row_checks` checks them
all; `region_prompts` makes a conversation with marks from a row (with `marking`, and `vcr` for one data set);
`conversations` tokenizes it; `batches` makes batches, in the `order` of an epoch, in processes of `workers`.
"""
