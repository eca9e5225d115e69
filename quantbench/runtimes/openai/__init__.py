"""Endpoints that speak the protocol of OpenAI."""
