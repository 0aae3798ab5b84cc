"""What is deployed beside the functions, defined once: resources, policies, dashboard, alarms."""
