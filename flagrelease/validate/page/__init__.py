"""`report.html`, the page of a validation: made from `report.json` and the manifest, readable without a network."""
