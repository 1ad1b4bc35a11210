"""The pages, one file each.

Not called `pages`: Streamlit takes a folder of that name beside its script for pages of its own.
"""
