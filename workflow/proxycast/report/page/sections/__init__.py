"""The parts of the page: each module makes sections from the tables of a finished study."""
