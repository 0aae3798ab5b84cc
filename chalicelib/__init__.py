"""Herald: real-time messages to users, groups and connections, over API Gateway WebSockets."""
