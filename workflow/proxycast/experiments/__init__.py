"""The experiments: data selection, model selection and forecasting, and what their answers are measured by."""
