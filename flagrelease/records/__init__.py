"""What passes between the stages, read strictly: recipe, manifest, validation report, rules, provenance."""
