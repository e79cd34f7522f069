"""A masked generative model of pixels (Chang et al. 2022), as a family of hfgen."""
