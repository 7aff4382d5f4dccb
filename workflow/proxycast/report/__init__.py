"""Every figure, in one style: direct labels, intervals, and the same colour for a statistic everywhere.

Each function takes tables of a study and returns a matplotlib `Figure`; `style.save` writes it as SVG (text stays text)
and PNG. One module a setting, and `style` for what they share.
"""
