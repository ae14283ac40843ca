"""Many requests on one model: the scheduler, the service around it, and OpenAI's API."""
