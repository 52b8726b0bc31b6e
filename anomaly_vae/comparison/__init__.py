"""The models of the family on one data set: trained alike, measured alike, in one table."""
