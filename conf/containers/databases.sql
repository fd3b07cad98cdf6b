-- Databases of Prefect's server and of the rollout store, on the first start of an empty PostgreSQL.
CREATE DATABASE brevity;
CREATE DATABASE prefect;
\connect prefect
CREATE EXTENSION pg_trgm;
