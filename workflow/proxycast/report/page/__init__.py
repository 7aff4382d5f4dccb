"""The study's page: one HTML file that answers the study's question, and opens without a network."""
