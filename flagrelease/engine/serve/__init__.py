"""The model as a server: the service around the scheduler, who may ask, and the routes."""
