"""What every machine agrees on: bundle, record, wire, preprocessing, errors. Needs Python >= 3.8 and numpy."""
