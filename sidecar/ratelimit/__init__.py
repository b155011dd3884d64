"""`sidecar ratelimit`: the rate limit service started from envoyproxy/ratelimit's environment variables, on its ports."""
