"""`sidecar ratelimit`: the rate limit service from envoyproxy/ratelimit's environment variables, on its ports."""
