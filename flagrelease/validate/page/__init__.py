"""The page of a validation: `report.html`, made of `report.json` and the manifest, whole without a network."""
